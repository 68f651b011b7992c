"""The project's own Kedro datasets, one in each file; all of them save atomically."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter_dataset": ["AdapterDataset"],
        "answer_store_dataset": ["AnswerStoreDataset"],
        "colbert_checkpoint_dataset": ["ColbertCheckpointDataset"],
        "conversations_dataset": ["ConversationsDataset"],
        "encoding_cache_dataset": ["EncodingCacheDataset"],
        "gguf_converter_dataset": ["GGUFConverterDataset"],
        "gguf_file_dataset": ["GGUFFileDataset"],
        "hub_dataset": ["HubDataset"],
        "hub_model_dataset": ["HubModelDataset"],
        "hub_publication_dataset": ["HubPublicationDataset"],
        "json_dataset": ["JSONDataset"],
        "jsonlines_dataset": ["JSONLinesDataset"],
        "merged_model_dataset": ["MergedModelDataset"],
        "model_directory_dataset": ["ModelDirectoryDataset"],
        "quantized_model_dataset": ["QuantizedModelDataset"],
        "retrieval_index_dataset": ["RetrievalIndexDataset"],
        "text_dataset": ["TextDataset"],
        "tokenizer_dataset": ["TokenizerDataset"],
        "word_list_dataset": ["WordListDataset"],
    },
)
